"""Pure mathematics of the method: functions of arrays, no I/O, no state."""
