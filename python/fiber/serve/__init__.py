"""`fiber serve`: the methods of a model over HTTP (extra `serve`)."""
