/* Time, for rates and dates. */
#pragma once
double clock_seconds(void); // monotonic
void   clock_date(char out[32]); // UTC, "2025-01-31T12:00:00Z"
