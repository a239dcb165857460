"""Feetech bus servos (STS3215): the wire protocol, the control table and the serial bus. Needs pyserial."""
