"""From rows to figures, tables, pictures and pages."""
