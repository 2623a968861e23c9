"""The core: requests, pages, scheduler, sampling and the step loop. Knows no text, no gRPC and no TVM."""
