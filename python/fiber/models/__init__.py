"""Model families with shared encoders and heads, which return raw outputs, not losses."""
