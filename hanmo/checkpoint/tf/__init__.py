"""TensorFlow's bundle format: reader and writer, without TensorFlow."""
