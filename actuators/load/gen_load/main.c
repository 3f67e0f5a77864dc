/* gen_load: the open-loop HTTP load engine of Deep Scheduling.
 *
 * Build:  cc -O2 -o gen_load *.c -lm
 * Run:    ./gen_load --target http://127.0.0.1:8080        random bursts of the social network's requests
 *         ./gen_load --help
 *
 * It sends every request at its intended time, however long responses take, counts latency from that time, and prints a
 * JSON line per window. actuators/load/engine.py runs it with a plan. Linux only (epoll, timerfd).
 *
 * Own code, because wrk2 pipelines requests and counts latency from the actual send time (docs/nginx-facts.md#wrk2). */
#include "engine.h"

static struct arrivals *begin_arrivals(const struct plan *plan, const struct options *options) {
    struct arrivals *arrivals = allocate(plan->stream_count, sizeof *arrivals);
    for (size_t i = 0; i < plan->stream_count; i++) {
        const struct stream *stream = &plan->streams[i];
        struct random random = random_for(options->seed, FOR_ARRIVALS, i);
        arrivals_begin(&arrivals[i], stream->steps, stream->step_count, options->duration_s, random);
    }
    return arrivals;
}

static void dump_schedule(const struct plan *plan, struct arrivals *arrivals) {
    for (size_t i = 0; i < plan->stream_count; i++)
        for (unsigned long long ordinal = 0; arrivals_due_ns(&arrivals[i]) != NEVER; ordinal++) {
            printf("%lld %s-%llu\n", (long long)arrivals_due_ns(&arrivals[i]), plan->streams[i].type, ordinal);
            arrivals_next(&arrivals[i]);
        }
}

static void run(const struct options *options, const struct plan *plan, struct arrivals *arrivals) {
    struct target target = parse_target(options->target);
    struct engine engine;
    engine_prepare(&engine, options, plan, &target);
    engine_begin(&engine, arrivals);
    engine_run(&engine);
    engine_end(&engine);
}

int main(int argument_count, char **arguments) {
    struct options options = parse_options(argument_count, arguments);
    struct plan plan = options.plan_path != NULL ? read_plan(options.plan_path)
                                                 : random_plan(&options.random, options.duration_s, options.seed);
    struct arrivals *arrivals = begin_arrivals(&plan, &options);
    if (options.print_plan) print_plan(&plan, stdout);
    else if (options.dump_schedule) dump_schedule(&plan, arrivals);
    else run(&options, &plan, arrivals);
    free(arrivals);
    free_plan(&plan);
    return EXIT_SUCCESS;
}
