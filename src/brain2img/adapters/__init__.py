"""Subject adapters: (B_s, C_s, T_s) -> grid (B_s, F, T)."""
