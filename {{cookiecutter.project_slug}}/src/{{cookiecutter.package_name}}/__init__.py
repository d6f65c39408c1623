"""Your app. Start in `routes/home.py`."""
