#include "engine.h"

#include "exchange.h"
#include "machine.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { EVENT_BATCH = 64 };
#define EVEN_SHARE 0.005 /* of a fixed gap that waking up may be late by */
#define SPIN_SPARE_NS 20000LL
#define MOST_SPIN_SHARE 0.25 /* of a fixed gap, and so of a core */
#define NEAR_NS 12000LL /* what arming a timer and waking up costs on a virtual machine; less on a real one */
#define COLLECT_NS 1000000LL

/* Index of the stream whose request is due next; *due_ns is absolute, NEVER when there is none. */
static size_t next_stream(const struct engine *engine, int64_t *due_ns) {
    size_t next = 0;
    int64_t earliest = NEVER;
    for (size_t i = 0; i < engine->plan->stream_count; i++) {
        int64_t due = arrivals_due_ns(&engine->arrivals[i]);
        if (due < earliest) earliest = due, next = i;
    }
    *due_ns = earliest == NEVER ? NEVER : engine->start_ns + earliest;
    return next;
}

static void end_window(struct engine *engine, int64_t at_ns) {
    struct period *window = &engine->window;
    int64_t cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    window->end_s = ns_to_seconds(at_ns - engine->start_ns);
    window->cpu_s = ns_to_seconds(cpu_ns - engine->cpu_ns);
    engine->cpu_ns = cpu_ns;
    engine->total.saturated_windows += period_is_saturated(window, engine->options);
    if (period_cpu_share(window) > engine->options->saturated_cpu_share) step_down(0);
    period_add(&engine->total, window);
    size_t connections = engine->in_flight;
    for (const struct connection *c = engine->pool.idle.first; c != NULL; c = c->next) connections++;
    report_window(&engine->report, window, (struct load_state){engine->in_flight, connections});
    period_begin(window, window->end_s);
}

/* Counts arrivals and ends windows up to now, in order, so that `planned` belongs to the window of the due time. */
static void advance_to(struct engine *engine, int64_t now) {
    for (;;) {
        int64_t due_ns;
        size_t stream = next_stream(engine, &due_ns);
        int64_t repeat_ns = repeats_due_ns(&engine->repeats);
        int64_t next_ns = due_ns < repeat_ns ? due_ns : repeat_ns;
        if (engine->window_end_ns <= next_ns && engine->window_end_ns <= now) {
            end_window(engine, engine->window_end_ns);
            engine->window_end_ns += seconds_to_ns(engine->options->window_s);
        } else if (repeat_ns < due_ns && repeat_ns <= now)
            repeat_due(engine);
        else if (due_ns <= now) {
            arrivals_next(&engine->arrivals[stream]);
            request_due(engine, stream, due_ns);
        } else
            return;
    }
}

int64_t patience_ns(const struct engine *engine, const struct request *request) {
    double patience_s = engine->plan->streams[request->stream].clients.patience_s;
    return seconds_to_ns(patience_s > 0 ? patience_s : engine->options->timeout_s);
}

static int64_t backlog_deadline_ns(const struct engine *engine) {
    const struct request *request = backlog_first(&engine->backlog);
    return request->due_ns + patience_ns(engine, request);
}

static void expire(struct engine *engine, int64_t now) {
    struct pool *pool = &engine->pool;
    while (pool->connecting.first != NULL && pool->connecting.first->deadline_ns <= now)
        request_failed(engine, pool->connecting.first, ERROR_TIMEOUT);
    for (size_t i = 0; i < pool->waiting_count; i++)
        while (pool->waiting[i].first != NULL && pool->waiting[i].first->deadline_ns <= now)
            request_failed(engine, pool->waiting[i].first, ERROR_TIMEOUT);
    while (engine->backlog.count > 0 && backlog_deadline_ns(engine) <= now) drop_first_of_backlog(engine);
}

static int64_t earlier(int64_t a, int64_t b) { return a < b ? a : b; }

/* Absolute time of the next thing to do that no event announces. */
static int64_t next_wake_ns(const struct engine *engine) {
    int64_t wake_ns;
    next_stream(engine, &wake_ns);
    wake_ns = earlier(wake_ns, repeats_due_ns(&engine->repeats));
    if (wake_ns != NEVER) wake_ns -= engine->spin_ns;
    wake_ns = earlier(wake_ns, engine->window_end_ns);
    if (engine->end_ns > now_ns()) wake_ns = earlier(wake_ns, engine->end_ns);
    if (engine->pool.connecting.first != NULL) wake_ns = earlier(wake_ns, engine->pool.connecting.first->deadline_ns);
    for (size_t i = 0; i < engine->pool.waiting_count; i++)
        if (engine->pool.waiting[i].first != NULL) wake_ns = earlier(wake_ns, engine->pool.waiting[i].first->deadline_ns);
    if (engine->backlog.count > 0) wake_ns = earlier(wake_ns, backlog_deadline_ns(engine));
    return wake_ns;
}

static void arm_timer(struct engine *engine, int64_t wake_ns) {
    if (wake_ns == engine->armed_ns) return;
    engine->armed_ns = wake_ns;
    struct itimerspec when = {.it_value = {wake_ns / NS_PER_S, wake_ns % NS_PER_S}};
    if (timerfd_settime(engine->timer, TFD_TIMER_ABSTIME, &when, NULL) != 0) fail_system("timerfd_settime");
}

/* First SIGINT or SIGTERM: no more arrivals, drain. Second: give up what is in flight. */
static void on_signal(struct engine *engine) {
    struct signalfd_siginfo info;
    if (read(engine->signals, &info, sizeof info) != sizeof info) return;
    bool again = engine->interrupted;
    engine->interrupted = true; /* what is given up now is not repeated */
    for (size_t i = 0; i < engine->plan->stream_count; i++) engine->arrivals[i].at_s = INFINITY;
    engine->end_ns = now_ns();
    engine->repeats.count = 0;
    while (engine->backlog.count > 0) drop_first_of_backlog(engine);
    while (again && engine->pool.connecting.first != NULL)
        request_failed(engine, engine->pool.connecting.first, ERROR_TIMEOUT);
    for (size_t i = 0; again && i < engine->pool.waiting_count; i++)
        while (engine->pool.waiting[i].first != NULL) request_failed(engine, engine->pool.waiting[i].first, ERROR_TIMEOUT);
}

/* Whether answers may wait for the wake-up of a later send: waking up is half of what a request costs. The kernel keeps
 * them and notes when they arrive. Not while requests wait for a connection. */
static bool may_collect(const struct engine *engine, int64_t wait_ns) {
    return wait_ns < COLLECT_NS && engine->pool.stamps && !engine->read_at_once && engine->backlog.count == 0;
}

static void sleep_until(int64_t wake_ns) {
    struct timespec until = {wake_ns / NS_PER_S, wake_ns % NS_PER_S};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL); /* too early after a signal: the loop sleeps again */
}

/* Sleeps until something is due or a connection wakes it, unless the next send is so near that sleeping costs more. */
static void handle_events(struct engine *engine) {
    struct epoll_event events[EVENT_BATCH];
    int64_t wake_ns = next_wake_ns(engine), now = now_ns(), wait_ns = wake_ns - now;
    bool near = wait_ns < NEAR_NS, collect = !near && may_collect(engine, wait_ns);
    if (collect && wake_ns - engine->collected_ns < COLLECT_NS) {
        sleep_until(wake_ns); /* the next wake-up is early enough to look for answers */
        return;
    }
    engine->collected_ns = now;
    if (!near && !collect) arm_timer(engine, wake_ns);
    int count = epoll_wait(engine->pool.epoll, events, EVENT_BATCH, near || collect ? 0 : -1);
    if (count < 0 && errno != EINTR) fail_system("epoll_wait");
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == &engine->timer) engine->armed_ns = NEVER; /* edge-triggered: no need to read it */
        else if (events[i].data.ptr == &engine->signals) on_signal(engine);
        else connection_event(engine, events[i].data.ptr, events[i].events);
    }
    /* Only after all answers: one that arrived in time must not count as a timeout. */
    if (count < 0 || count == EVENT_BATCH) return;
    expire(engine, now_ns());
    if (collect) sleep_until(earlier(wake_ns, next_wake_ns(engine)));
}

static bool engine_is_finished(const struct engine *engine, int64_t now) {
    return now >= engine->end_ns && engine->in_flight == 0 && engine->backlog.count == 0 && engine->repeats.count == 0;
}

void engine_run(struct engine *engine) {
    for (;;) {
        int64_t now = now_ns();
        advance_to(engine, now);
        start_backlog(engine);
        if (engine_is_finished(engine, now)) break;
        handle_events(engine);
    }
    if (!period_is_empty(&engine->window)) end_window(engine, now_ns());
    report_summary(&engine->report, &engine->total, engine->interrupted);
}

static void watch(struct engine *engine, int *descriptor, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = descriptor};
    if (*descriptor < 0 || epoll_ctl(engine->pool.epoll, EPOLL_CTL_ADD, *descriptor, &event) != 0)
        fail_system("setting up events");
}

static int open_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) fail_system("sigprocmask");
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static FILE *open_requests_csv(const char *path) {
    if (path == NULL) return NULL;
    FILE *file = fopen(path, "w");
    if (file == NULL) fail_user("requests file '%s': %s", path, strerror(errno));
    fputs("type,ordinal,due_ns,sent_ns,done_ns,status,outcome\n", file);
    return file;
}

static void period_allocate(struct period *period, size_t types) {
    period->type_count = types;
    period->types = allocate(types, sizeof *period->types);
}

/* A reader that pauses must not block the engine; 1 MiB holds about a hundred windows. */
static void widen_output(void) { (void)!fcntl(STDOUT_FILENO, F_SETPIPE_SZ, 1 << 20); }

void engine_prepare(struct engine *engine, const struct options *options, const struct plan *plan,
                    const struct target *target) {
    *engine = (struct engine){.options = options, .plan = plan};
    widen_output();
    pool_begin(&engine->pool, options->max_connections, plan->stream_count);
    reach_target(target, &engine->pool, options->connect_timeout_s);
    period_allocate(&engine->window, plan->stream_count);
    period_allocate(&engine->total, plan->stream_count);
    engine->ordinals = allocate(plan->stream_count, sizeof *engine->ordinals);
    engine->writer = (struct request_writer){target->authority, options->seed, (uint32_t)options->users, {0}, {0}};
    engine->requests_csv = open_requests_csv(options->requests_csv);
    bool json = options->output == OUTPUT_JSON || (options->output == OUTPUT_AUTO && !isatty(STDOUT_FILENO));
    engine->report = (struct report){options, plan, {0}, json, isatty(STDERR_FILENO)};
    engine->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    engine->signals = open_signals();
    watch(engine, &engine->timer, EPOLLIN | EPOLLET);
    watch(engine, &engine->signals, EPOLLIN);
}

/* The least mean gap of the plan's fixed steps, of all streams together; NEVER when there is none. */
static int64_t fixed_gap_ns(const struct plan *plan) {
    double rate_rps = 0;
    bool fixed = false;
    for (size_t i = 0; i < plan->stream_count; i++) {
        double most = 0;
        for (size_t k = 0; k < plan->streams[i].step_count; k++) {
            const struct step *step = &plan->streams[i].steps[k];
            fixed |= step->distribution == FIXED && step->rate_rps > 0;
            if (step->rate_rps > most) most = step->rate_rps;
        }
        rate_rps += most;
    }
    return fixed ? (int64_t)(1e9 / rate_rps) : NEVER;
}

/* As the option says. Without it: none where gaps are random or waking up is even enough, else long enough to be awake
 * in time, within a part of the gap. */
static int64_t spin_ns(const struct engine *engine, int64_t *late_ns) {
    if (engine->options->spin_us > 0) return (int64_t)(engine->options->spin_us * 1e3);
    int64_t gap_ns = fixed_gap_ns(engine->plan);
    if (gap_ns == NEVER) return 0;
    *late_ns = wake_late_ns();
    if ((double)*late_ns <= EVEN_SHARE * (double)gap_ns) return 0;
    int64_t wanted_ns = *late_ns + SPIN_SPARE_NS, most_ns = (int64_t)(MOST_SPIN_SHARE * (double)gap_ns);
    return wanted_ns < most_ns ? wanted_ns : most_ns;
}

void engine_begin(struct engine *engine, struct arrivals *arrivals) {
    engine->arrivals = arrivals;
    const char *priority = engine->options->normal_priority ? "normal" : raise_priority();
    bool cores_awake = !engine->options->allow_cpu_idle && keep_cores_awake();
    int64_t late_ns = 0;
    prctl(PR_SET_TIMERSLACK, 1UL); /* without realtime priority, sleeps would end up to 50 us late */
    engine->spin_ns = spin_ns(engine, &late_ns);
    engine->start_ns = now_ns();
    engine->end_ns = engine->start_ns + seconds_to_ns(engine->options->duration_s);
    engine->window_end_ns = engine->start_ns + seconds_to_ns(engine->options->window_s);
    engine->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    struct machine_state machine = {priority, cores_awake, (double)late_ns / 1e3, (double)engine->spin_ns / 1e3};
    report_start(&engine->report, engine->start_ns, machine);
}

void engine_end(struct engine *engine) {
    pool_end(&engine->pool);
    free(engine->backlog.requests), free(engine->repeats.requests);
    free(engine->window.types), free(engine->total.types);
    free(engine->ordinals);
    free(engine->writer.body.data), free(engine->writer.bytes.data), free(engine->report.line.data);
    if (engine->requests_csv != NULL && fclose(engine->requests_csv) != 0) fail_system("writing the requests file");
    close(engine->timer), close(engine->signals);
}
