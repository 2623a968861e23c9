"""The catalogue of boards: files with their figures and sources, and what reads them."""
