"""Grant tables: pages a domain lets others map and copy, and what we keep track of for them.

Nothing here locks: the caller holds the host's lock.

Ref: xen/include/public/grant_table.h
"""

from xenpy.pv.gnttab.copy import CopyEnd
from xenpy.pv.gnttab.errors import GrantError
from xenpy.pv.gnttab.mapping import GrantMapping, HvmMapper, Mapper
from xenpy.pv.gnttab.shared import GrantTableState
from xenpy.pv.gnttab.table import GrantTable

__all__ = ["CopyEnd", "GrantError", "GrantMapping", "GrantTable", "GrantTableState", "HvmMapper", "Mapper"]
