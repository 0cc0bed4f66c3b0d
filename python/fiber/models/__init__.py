"""Model families with shared encoders and heads. Models return raw outputs, not losses."""
