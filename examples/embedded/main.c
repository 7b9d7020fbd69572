/* Inspects the raw frames of the file frames.bin, on a PC or on a board with semihosting:
 *
 *     steadfast export runs/demo/robust --out exports/demo --format embedded
 *     gcc -std=c99 -O2 -I exports/demo/embedded/c examples/embedded/main.c exports/demo/embedded/c/steadfast.c -o inspect
 *
 * For a Cortex-M4F: arm-none-eabi-gcc -mcpu=cortex-m4 -mfloat-abi=hard and what the board's linker script asks for. */

#include "steadfast.h"

#include <stdio.h>

static uint8_t frame[STEADFAST_FRAME_BYTES];
static float memory[(STEADFAST_ARENA_BYTES + sizeof(float) - 1) / sizeof(float)];

int main(void)
{
    int wrong = steadfast_self_test(frame, sizeof frame, memory, sizeof memory);
    if (wrong) {
        printf("the self-test failed: %d\n", wrong);
        return 1;
    }
    puts("the self-test passed");
    FILE *frames = fopen("frames.bin", "rb");
    if (!frames) {
        puts("frames.bin cannot be opened");
        return 1;
    }
    while (fread(frame, 1, sizeof frame, frames) == sizeof frame) {
        steadfast_verdict verdict;
        if (steadfast_classify(frame, sizeof frame, memory, sizeof memory, &verdict) != STEADFAST_OK)
            return 1;
        const char *said = verdict.passes < 0 ? "-" : verdict.passes ? "pass" : "REJECT";
        printf("%s %s", said, steadfast_labels[verdict.label]);
        for (int class = 0; class < STEADFAST_CLASSES; class++)
            printf(" %.9g", (double)verdict.logits[class]);
        printf("\n");
    }
    fclose(frames);
    return 0;
}
