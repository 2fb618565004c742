"""Stage 4's output: metrics of a run, scores over runs, tables, paired tests, plots, the page around them."""
