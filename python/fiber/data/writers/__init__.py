"""Write boxes in the formats of other tools."""
