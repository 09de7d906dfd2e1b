"""Mathematics without input or output: mixers, masks, quantiser, losses."""
