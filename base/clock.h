/* Time, for rates and dates. */
#pragma once
double clock_seconds(void); // monotonic; the same for all processes of a machine
void   clock_machine(char out[37]); // whose clock that is: the boot of the system, a UUID; "" where it is not known
void   clock_date(char out[32]); // UTC, "2025-01-31T12:00:00Z"
