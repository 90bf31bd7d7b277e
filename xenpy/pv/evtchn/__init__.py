"""Event channels: the ports of a domain, what they are bound to, and how an event reaches a guest or a backend of ours.

`EventChannels` is a guest's table, `HostPorts` ours. Nothing here locks: the caller holds the host's lock.

Ref: xen/include/public/event_channel.h
"""

from xenpy.pv.evtchn.channels import EventChannels
from xenpy.pv.evtchn.host_ports import HostPorts
from xenpy.pv.evtchn.port import ChannelsState, FifoState, PortState, PortStatus
from xenpy.pv.evtchn.table import PortTable

__all__ = ["ChannelsState", "EventChannels", "FifoState", "HostPorts", "PortState", "PortStatus", "PortTable"]
