"""The toybox models: their scenes, training and evaluation."""
