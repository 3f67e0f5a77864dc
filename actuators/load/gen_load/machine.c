#include "machine.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
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

bool keep_cores_awake(void) {
    const int32_t latency_us = 0;
    if (!halts_in_a_virtual_machine()) return false;
    int descriptor = open(LATENCY_REQUEST, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) return false;
    if (write(descriptor, &latency_us, sizeof latency_us) == sizeof latency_us) return true;
    close(descriptor);
    return false;
}

enum { WAKES = 40 };
#define WAKE_AFTER_NS 500000LL

static int compare_times(const void *a, const void *b) {
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

int64_t wake_late_ns(void) {
    int64_t late[WAKES];
    for (int i = 0; i < WAKES; i++) {
        int64_t due = now_ns() + WAKE_AFTER_NS;
        struct timespec until = {due / NS_PER_S, due % NS_PER_S};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
        late[i] = now_ns() - due;
    }
    qsort(late, WAKES, sizeof late[0], compare_times);
    return late[WAKES * 9 / 10];
}

enum { RAISED_NICE = -10 };
#define LONGEST_RUN_US 200000

void step_down(int signal_number) {
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

const char *raise_priority(void) {
    if (become_realtime()) return "realtime";
    return setpriority(PRIO_PROCESS, 0, RAISED_NICE) == 0 ? "raised" : "normal";
}
