"""From runs to tables, figures and a page: python -m utilities.report RUNS... --out X (README.md beside this file)."""
