"""VNC: what a framebuffer shows, and a keyboard and pointer, for viewers on the network. The protocol does no input or output.

Ref: RFC 6143 (RFB 3.8); https://github.com/rfbproto/rfbproto (Tight, Zlib, QEMU's extended key event)
"""
