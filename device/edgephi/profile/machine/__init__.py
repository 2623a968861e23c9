"""
What a machine is and how it is doing: processor, memory, limits, heat, power. Reads the kernel's files and decides
nothing but which of its cores to compute on.
"""
