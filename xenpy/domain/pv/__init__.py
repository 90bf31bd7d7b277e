"""PV domains: their kernels run in ring 3, on page tables that they keep by hypercalls."""
