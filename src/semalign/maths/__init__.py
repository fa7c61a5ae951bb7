"""The mathematics of SemAlign on plain tensors: no models, no files, no configuration.

bases: LM head -> semantic bases and maps; attribution: layer scores; pairing: which layer teaches which;
losses: what training minimises; similarity: how alike activations are.
"""
