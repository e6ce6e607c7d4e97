"""What frozen models gave, kept on disk by the very tensor that they gave it for."""
