"""Dashboards for notebooks: thin, over data classes that work without a browser."""
