/* Scheduling priority and idle states: the engine is the measuring instrument, and a send that waits for other programs
 * of the machine is an error of measurement.
 *
 * Measured with both cores busy: p99 of the send delay 3.5 ms at normal priority, 0.1 ms under SCHED_FIFO. */
#ifndef GEN_LOAD_MACHINE_H
#define GEN_LOAD_MACHINE_H

#include "base.h"

/* Raises the priority as far as the system allows; its name for the report. */
const char *raise_priority(void);

/* Back to normal priority for good: saturated, or running for LONGEST_RUN_US without a pause, the engine must not
 * hold up other programs. A signal handler. */
void step_down(int signal_number);

/* By how much a sleep ends too late here, the 90th percentile of WAKES short ones; takes some 20 ms. */
int64_t wake_late_ns(void);

/* Until this process ends; false where the system does not need it or forbids it.
 *
 * A virtual machine halts its idle cores. The host takes a halted core away and gives it back when it has time, which
 * delays a program that sends and measures by the clock by milliseconds. So the kernel is asked to let idle cores wait
 * awake (Documentation/power/pm_qos_interface.rst, as cyclictest does); the request ends with the process. Only where
 * the kernel says that it halts in a virtual machine: other hardware wakes within microseconds from its first idle
 * states. */
bool keep_cores_awake(void);

#endif
