"""Small apps to copy from. docs/first-week.md introduces them. bare.py and ordinary.py use nothing of everycore."""
