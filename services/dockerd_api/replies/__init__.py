"""What fills the long replies: the engine's news on the streams' connections."""
