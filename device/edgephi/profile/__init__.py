"""The device: what it is (``probe``), what it runs (``isa``), what it allows (``memory_limits``), what it takes on."""
