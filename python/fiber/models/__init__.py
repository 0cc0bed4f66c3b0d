"""Model families, shared encoders and heads; raw outputs, no losses."""
