"""The app that the engine's tests serve: as a bake's, and small."""
