"""
The engine as a child process: messages, channel, supervisor and quarantine. Knows no gRPC, no TVM and no text.

The split is at the loop. The child holds backend, engine and :class:`edgephi.engine.loop.EngineLoop`; the front has a
:class:`edgephi.isolation.remote_loop.RemoteLoop` in its place. Only token ids cross.
"""
