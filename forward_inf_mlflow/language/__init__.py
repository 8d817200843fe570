"""Language models: which texts made them say this, and what they know word for word."""
