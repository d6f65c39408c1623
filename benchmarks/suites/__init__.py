"""One module for each question: NAME, `run(context) -> dict` for the json, `table(results) -> list[Table]`."""
