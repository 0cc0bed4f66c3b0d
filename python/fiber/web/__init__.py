"""`fiber web`: a page to try a model in a browser (extra `web`)."""
