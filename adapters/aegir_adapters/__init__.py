"""Optional parts of aegir-stream, one extra per role."""
