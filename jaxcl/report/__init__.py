"""What people look at: statistics, tables, figures, and one page that holds them."""

__all__: list[str] = []
