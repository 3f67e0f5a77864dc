/* We are the measuring instrument: a send that waits for other programs on the machine is our error.
 *
 * Measured with both cores busy: send delay p99 3.5 ms at normal priority, 0.1 ms under SCHED_FIFO. */
#ifndef GEN_LOAD_MACHINE_H
#define GEN_LOAD_MACHINE_H

#include "base.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* A virtual machine's idle core is halted: the host takes it away, and gives it back when it finds the time.
 *
 * For a program that sends and measures by the clock that is an error of milliseconds. While we run, the kernel is
 * asked, in the way that is meant for it (Documentation/power/pm_qos_interface.rst, as cyclictest does), to let idle
 * cores wait awake. It ends with our descriptor, so with us, however we end. Only where the kernel says that it halts
 * in a virtual machine: hardware of one's own sleeps in steps, and wakes within microseconds from the first ones. */
#define IDLE_DRIVER "/sys/devices/system/cpu/cpuidle/current_driver"
#define LATENCY_REQUEST "/dev/cpu_dma_latency"

static bool halts_in_a_virtual_machine(void) {
    char driver[32] = {0};
    int descriptor = open(IDLE_DRIVER, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return false;
    ssize_t length = read(descriptor, driver, sizeof driver - 1);
    close(descriptor);
    return length > 0 && strcmp(driver, "haltpoll\n") == 0;
}

/* Until this process ends; false where the system does not need it, or forbids it. */
static bool keep_cores_awake(void) {
    const int32_t latency_us = 0;
    if (!halts_in_a_virtual_machine()) return false;
    int descriptor = open(LATENCY_REQUEST, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) return false;
    if (write(descriptor, &latency_us, sizeof latency_us) == sizeof latency_us) return true;
    close(descriptor);
    return false;
}

enum { RAISED_NICE = -10 };
#define LONGEST_RUN_US 200000

/* Saturated, or without a pause for so long: from here on nobody else may suffer for it. */
static void step_down(int signal_number) {
    (void)signal_number;
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_OTHER, &none);
}

static bool become_realtime(void) {
    struct sigaction action = {.sa_handler = step_down, .sa_flags = SA_RESTART};
    /* Above the control path of actuators/processes/system.py, which takes some milliseconds at every interval's end. */
    struct sched_param above_control = {.sched_priority = 2};
    struct rlimit limit;
    if (sigaction(SIGXCPU, &action, NULL) != 0 || getrlimit(RLIMIT_RTTIME, &limit) != 0) return false;
    if (limit.rlim_max < LONGEST_RUN_US) return false;
    limit.rlim_cur = LONGEST_RUN_US;
    return setrlimit(RLIMIT_RTTIME, &limit) == 0 && sched_setscheduler(0, SCHED_FIFO, &above_control) == 0;
}

/* As high as the system allows; its name for the report. */
static const char *raise_priority(void) {
    if (become_realtime()) return "realtime";
    return setpriority(PRIO_PROCESS, 0, RAISED_NICE) == 0 ? "raised" : "normal";
}

#endif
