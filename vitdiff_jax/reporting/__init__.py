"""The report of a workdir: plots, galleries, and the page that holds them."""
