"""An assembler for x86-64 as Python calls, which makes machine code without a compiler on the host: for guests, and for this process.

Operands are in Intel's order. Sizes come from the registers (rax, eax, ax, al), or from `size=` in bytes where there is none:

    a = Assembler(0xFFFF808000200000)                 # the VA where the code will be
    a.label("entry")
    a.mov(rax, mem(rdi, 8))                           # [rdi + 8]
    a.lea(rsi, mem(rip="table"))                      # a label's place; rip=0x1000 for a VA
    a.mov(mem(rip="flags", seg=gs), 1, size=1)
    a.cmp(mem(rsi, scale=(rcx, 8), disp=16), rax)     # [rsi + rcx*8 + 16]
    a.jz("slow")                                      # backwards as short as can be; forwards 32 bits, 8 with short=True
    a.lock.cmpxchg(mem(rbx), rdx)
    a.and_(eax, 0xFFF)                                # Python's keywords get an underscore: and_, or_, not_, in_
    a.rep_stosq()
    a.align(16)
    a.label("table")
    a.quad("entry", 0)                                # also a.data(b"...")
    code, entry = a.assemble(), a.address("entry")

Registers come from `xenpy.asm.registers`. Every mistake raises AssemblerError.

Ref: AMD64 APM volume 3 for all encodings
"""

from xenpy.asm.assembler import Assembler
from xenpy.asm.operands import AssemblerError, Mem, mem

__all__ = ["Assembler", "AssemblerError", "Mem", "mem"]
