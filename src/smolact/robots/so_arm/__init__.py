"""The SO-100 and SO-101 arms: followers and leaders, alone or in pairs, with their set-up. Needs pyserial."""
