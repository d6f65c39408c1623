"""A table that can be printed on a terminal and written as markdown."""

from dataclasses import dataclass, field

from rich.table import Table as RichTable


@dataclass
class Table:
    """The first column holds names; the others are figures and stand right."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=not number)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", *map(_line, [self.columns])]
        lines += ["|" + "|".join(["---", *["---:"] * (len(self.columns) - 1)]) + "|", *map(_line, self.rows)]
        return "\n".join([*lines, "", *([self.note, ""] if self.note else [])])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
