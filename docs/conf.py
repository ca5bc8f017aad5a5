"""How Sphinx builds these pages: `make docs`."""

project = "unimp_jax"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # a test runs the notebook
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "unimp_jax"
