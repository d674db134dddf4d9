"""Takes feedback over HTTP, in our own shape and in TensorZero's."""
