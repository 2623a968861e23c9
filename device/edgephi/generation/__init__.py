"""Text in, text out: ties the text layer to the engine's step loop. Knows no gRPC and no TVM."""
