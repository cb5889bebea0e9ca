"""The networks: one network or building block per file.

Axes have one name in every shape and every einops pattern here:

    b       rows of a batch: guidance branches, times videos, times windows that are evaluated together
    t       frames of a window, condition frames among them
    h w     height and width, in the pixels of a level
    c       channels; last inside the networks, after the rows in what torch's layers take
    n m     tokens: pixels of a frame (h w), or words of a prompt, pictures' tokens, reference pixels
    heads d attention heads, and the width of one: c = heads * d
    p       reference pictures
"""
