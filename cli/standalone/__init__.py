"""Everything on one machine: embedded servers, a supervisor and `turnline up`."""
