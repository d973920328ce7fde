/* `bifocal plan` for a GPU: what it says, whether the configs that come along fit where they are meant to, and what
 * `train` chooses by it. */
#include "base/files.h"
#include "tests/cli/command.h"
#include "tests/cli/runs.h"
#include "tests/cli/tiny_project.h"
#include <stdlib.h>
#include <string.h>

static void configs_for_one_gpu_fit_80_gb(void **state) {
    (void)state;
    static const char *const names[] = {"gpt2_124m", "gpt2_1558m", "vit_b16", "mae_vit_l", "clip_vit_b32"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/configs/%s.yaml", SOURCE_FOLDER, names[i]);
        assert_prints("it has 74.51 GiB: the run fits", "/", "plan", path, "--memory", "80");
        assert_prints("it has 79.10 GiB: the run fits", "/", "plan", path, "--gpu", "a100");
    }
}

static void what_a_gpu_would_hold_is_told_part_by_part(void **state) {
    (void)state;
    assert_prints("moments", project, "plan", "config.yaml", "device=cuda");
    assert_prints("memory on a GPU (mine, 12.0 GiB)", project, "plan", "config.yaml", "--gpu", "mine:12");
    assert_prints("largest microbatch that fits: train.microbatches=1", project, "plan", "config.yaml", "--gpu", "l4");
    assert_prints("auto takes none", project, "plan", "config.yaml", "--gpu", "l4", "train.recompute=auto");
    assert_prints("auto takes selective of ", "/", "plan", SOURCE_FOLDER "/configs/gpt2_124m.yaml",
                  "train.microbatches=2", "train.recompute=auto");
    assert_prints("the run does not fit", "/", "plan", SOURCE_FOLDER "/configs/gpt2_1558m.yaml", "--gpu", "a100-40gb");
    assert_prints("no microbatch is small enough", "/", "plan", SOURCE_FOLDER "/configs/gpt2_1558m.yaml", "--gpu",
                  "rtx4090");
}

static void kernels_of_a_step_are_told_longest_first(void **state) {
    (void)state;
    assert_prints("modelled for h200, not measured", "/", "plan", "kernels", "--preset", "vit_ti", "--gpu", "h200");
    assert_prints("at most, everything at its peak: ", "/", "plan", "kernels", "--preset", "vit_ti");
    assert_refuses(2, "no preset 'gpt9'", "/", "plan", "kernels", "--preset", "gpt9");
    assert_refuses(2, "a CONFIG or --preset is wanted", "/", "plan", "kernels");
    assert_prints("adamw_parts", project, "plan", "kernels", "config.yaml", "train.recompute=full");
}

#define JOINT SOURCE_FOLDER "/configs/joint_b.yaml"

static void lanes_that_wait_are_told_with_batches_that_balance_them(void **state) {
    (void)state;
    assert_prints("lanes of a step (modelled for l4, not measured)", project, "plan", "config.yaml", "--gpu", "l4");
    assert_prints("2: texts of pairs", "/", "plan", JOINT, "--gpu", "h100");
    assert_prints("batches that balance them: data.1.batch=1856\n", "/", "plan", JOINT, "--gpu", "h100",
                  "train.lanes=1");
    assert_prints("  balanced as far as batches go", "/", "plan", JOINT, "--gpu", "h100", "data.1.batch=1856");
    assert_prints("3: repainted pictures", "/", "plan", JOINT, "--gpu", "h100", "train.lanes=4");
}

static void states_on_the_host_leave_room_and_change_no_bit(void **state) {
    (void)state;
    assert_prints("beside it, on the host: states", "/", "plan", SOURCE_FOLDER "/configs/gpt2_1558m.yaml",
                  "train.offload=states");
    assert_prints("it has 39.40 GiB: the run fits", "/", "plan", SOURCE_FOLDER "/configs/gpt2_1558m.yaml",
                  "train.offload=states", "train.recompute=auto", "--gpu", "a100-40gb");
    assert_status(0, project, "train", "config.yaml", "precision=bf16", "--run", "here");
    assert_status(0, project, "train", "config.yaml", "precision=bf16", "train.offload=states", "--run", "there");
    assert_same_files(project, "here/checkpoints/step-00000004/model.safetensors",
                      "there/checkpoints/step-00000004/model.safetensors");
    assert_same_files(project, "here/checkpoints/step-00000004/optimizer.safetensors",
                      "there/checkpoints/step-00000004/optimizer.safetensors");
}

static void what_is_wrong_is_refused(void **state) {
    (void)state;
    assert_refuses(2, "--gpu h1000 is not known; there are h100", project, "plan", "config.yaml", "--gpu", "h1000");
    assert_refuses(2, "fp8 needs a GPU of compute capability 8.9 or newer; a GPU (a100) is older", project, "plan",
                   "config.yaml", "precision=fp8", "--gpu", "a100");
    assert_refuses(2, "--memory", project, "plan", "config.yaml", "--memory", "0");
    assert_refuses(2, "auto does not go with parallel.pipeline", project, "plan", "config.yaml", "parallel.pipeline=2",
                   "train.microbatches=8", "train.recompute=auto");
}

static void assert_config_has(const char *run, const char *line) {
    Buffer text = {0};
    Error error = {0};
    char name[64];
    snprintf(name, sizeof name, "%s/config.yaml", run);
    char *path = temporary_path(project, name);
    assert_done(file_read(path, &text, &error), &error);
    if (!strstr(text.data, line)) fail_msg("%s has no '%s'", name, line);
    buffer_free(&text);
    free(path);
}

static void what_auto_chose_is_kept_for_a_run_that_goes_on(void **state) {
    (void)state;
    assert_status(0, project, "train", "config.yaml", "train.recompute=auto", "train.steps=3", "--run", "auto");
    assert_config_has("auto", "recompute: none");
    assert_status(0, project, "train", "config.yaml", "train.recompute=selective", "train.steps=3", "--run", "kept");
    assert_status(0, project, "train", "config.yaml", "train.recompute=auto", "train.steps=5", "--run", "kept",
                  "--resume");
    assert_config_has("kept", "recompute: selective");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configs_for_one_gpu_fit_80_gb),
        cmocka_unit_test(what_a_gpu_would_hold_is_told_part_by_part),
        cmocka_unit_test(kernels_of_a_step_are_told_longest_first),
        cmocka_unit_test(lanes_that_wait_are_told_with_batches_that_balance_them),
        cmocka_unit_test(states_on_the_host_leave_room_and_change_no_bit),
        cmocka_unit_test(what_is_wrong_is_refused),
        cmocka_unit_test(what_auto_chose_is_kept_for_a_run_that_goes_on),
    };
    return cmocka_run_group_tests(tests, open_project, close_project);
}
