"""What `callbacks=media` is made of: what a validation finds, how it is drawn, and how loggers take pictures."""
