/* A virtual machine's idle core is halted: the host takes it away, and gives it back when it finds the time.
 *
 * For a program that sends and measures by the clock that is an error of milliseconds. While we run, the kernel is
 * asked, in the way that is meant for it (Documentation/power/pm_qos_interface.rst, as cyclictest does), to let idle
 * cores wait awake. It ends with our descriptor, so with us, however we end. Only where the kernel says that it halts
 * in a virtual machine: hardware of one's own sleeps in steps, and wakes within microseconds from the first ones. */
#ifndef LOAD_ENGINE_AWAKE_H
#define LOAD_ENGINE_AWAKE_H

#include "base.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

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

#endif
